"""Devices and their memory, and the processes that share them.

agreement.py       what all processes must have in common, and what they decide together
data_parallel.py   one step on all devices: `pmap` on one host, a mesh across hosts
hosts.py           joins several processes; values of all, order, and the end
lifeline.py        connections between the processes, by which each learns of another's failure
memory.py          total and available memory of the host and of a device
"""
