"""From files on disk to batches on the devices."""
