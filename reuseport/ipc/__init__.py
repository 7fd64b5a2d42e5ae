"""What the processes share: channels, locks, the run directory, the scoreboard. Standard library only."""
