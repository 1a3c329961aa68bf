"""Kernel walls around the job's processes: seccomp, Landlock, users, capabilities; and what of them was achieved.

Covered: a process that has been taken over by hostile input cannot open connections it should not have, read or
change what belongs to the other two, run programs, trace, or reach for the rarely used parts of the kernel. Every
wall is measured from inside after it was put up; `walls` lists them.

Not covered: bugs of the kernel behind the calls that remain, the GPU's driver, timing and power.
"""
