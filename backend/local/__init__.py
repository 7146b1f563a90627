"""What ``make run`` does: prepare, start everything on this machine, wait, stop. Nothing of it runs elsewhere."""
