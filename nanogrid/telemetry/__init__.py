"""What NanoGrid reports about its own work: log lines by stage, events from children, and traces, with secrets masked."""
