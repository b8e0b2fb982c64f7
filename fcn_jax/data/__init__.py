"""Data sets: from files to records, from records to batches on the devices.

Raw files:
  raw.py        what a registered data set returns: samples, class names; its example
  shapes.py voc.py isbi.py layouts.py   the data sets of this package
  folder.py     a folder of images and masks
  cvat.py labelme.py coco.py   what annotation tools write; annotations.py has what they share
  polygons.py   shapes drawn into label maps
  images.py     image files: the formats that are opened, reading, headers, PNG
  masks.py      mask files: class indices from them
  palettes.py   colours that stand for classes
  channels.py   extra channels: depth, HHA
  labels.py     label maps as arrays; IGNORE_INDEX
  borders.py    U-Net's weights for borders between touching objects
Volumes:
  volumes.py    a prepared set of volumes, its records and statistics
  volume_folder.py   the files of a set of volumes: layouts, channels, grids
  nifti.py      NIfTI files
  plan.py       what all volumes of a set are resampled and normalised to
  resample.py   volumes at another spacing
  augment_volume.py   random patches on the device
Records:
  records.py    what a record holds, and writing it
  prepared.py   where prepared records are, and when they are prepared again
  datasets.py   open_dataset: data sets by name, registered ones and TFDS's; statistics
  splits.py     random access to the decoded records of a split
  shard.py      every n-th image of a list, for one of n jobs
Batches:
  canvases.py   canvas sizes for evaluation
  order.py      the order of training images
  pipeline.py   batches streamed from the host
  resident.py   a training set in device memory
  augment.py    random crops on the device
"""
