"""Devices and their memory.

data_parallel.py   one step on all devices: `pmap` on one host, a mesh across hosts
memory.py          total and available memory of the host and of a device
"""
