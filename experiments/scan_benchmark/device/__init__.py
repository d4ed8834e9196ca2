"""`bench scan --device gpu|tpu`: are the forms of each recurrence exact on an accelerator, and how fast are they there?

`command` has the order of events, `cases` what is timed and what is asked of it, `gate` compares with the definition in
double precision on the host, `clock` takes times, `programs` and `peers` run in processes of their own (`worker`): a
kernel that hangs or writes where it must not ends its process and not the benchmark. `report` tells it.
"""
