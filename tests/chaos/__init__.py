"""Kills, freezes and ends each part of a running Greenroom while it holds calls, and says what became of them."""
