"""The runner: the first process of a warm container, and how its programs get there.

`inside/nanogrid_warm/serve.py` begins with a picture of the life of runner, spare and run. `inside/__main__.py` starts it, and `programs`
is the host's part. The rule: `inside` imports nothing of NanoGrid. It shares only the protocol with `nanogrid.execution.container.link`.
"""
