"""The runner: the first process of a warm container, and how its programs get there.

Read `inside/__main__.py` for how an interpreter is held, `inside/nanogrid_warm/serve.py` for what it does, and `programs` for
the host's part. The rule: `inside` knows nothing of NanoGrid but the protocol that `nanogrid.execution.container.link` speaks too.
"""
