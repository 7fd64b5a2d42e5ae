"""The master: owns sockets and processes, executes what the core decides. Standard library and setproctitle only."""
