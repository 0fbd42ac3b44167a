"""Jobs: plan, begin, resume, follow, save and stop them, with or without a terminal.

spec.py       jobs as plain values: settings and hardware (`Request`), jobs (`JobSpec`)
load.py       loads the checkpoint and the pipeline of a request
session.py    a pipeline and the jobs that share it
runner.py     takes runs from their current step to their last
run_dir.py    the folder of a run
processes.py  a JobSpec shared among devices, one process each
reporter.py   the events of a run, and their receivers
"""
