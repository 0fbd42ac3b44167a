"""Jobs: plan, begin, resume, follow, save and stop them, with or without a terminal.

spec.py       what to do, as plain values: settings and hardware (`Request`), jobs (`JobSpec`)
load.py       from a request to a device, a checkpoint and a pipeline
session.py    one pipeline and the jobs that share it
runner.py     runs from their present step to their last
run_dir.py    the folder of a run
processes.py  a JobSpec shared among devices, one process each
reporter.py   the events of all this, and who receives them
"""
