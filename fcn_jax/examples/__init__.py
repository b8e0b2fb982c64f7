"""Small programs to run and read."""
