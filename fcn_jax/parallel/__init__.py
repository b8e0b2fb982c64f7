"""Devices and their memory, and the processes that share them.

agreement.py        comparisons between processes, and their common decisions
data_parallel.py    one step on all devices: `pmap` on one host, a mesh across hosts
hosts.py            joins several processes; values of all, order, and the end
lifeline.py         connections between the processes, by which each learns of another's failure
memory_estimate.py  the memory that a program needs, estimated before it is compiled
program_cost.py     memory, operations and collectives of a compiled program
target.py           the platform that a program is traced for
tpu.py              published figures of TPUs, and absent ones to compile for
memory.py           total and available memory of the host and of a device
"""
