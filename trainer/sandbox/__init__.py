"""The kernel sandbox around the job's processes: seccomp, Landlock, users and capabilities, and its measurement.

A process that hostile input has taken over cannot open connections that it has no need of, read or change what
belongs to the other processes, run programs, trace, or use the rarely needed parts of the kernel. Each property is
measured from inside after the process has confined itself; `properties` lists them.

Not covered: bugs of the kernel in the calls that remain, the GPU's driver, timing and power.
"""
