"""What NanoGrid says about its own work: log lines by stage, events from children, traces; with secrets masked."""
