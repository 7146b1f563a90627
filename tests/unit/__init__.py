"""Rules and settings by themselves: no server, no process."""
