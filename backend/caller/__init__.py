"""A caller in the terminal: starts a session over REST, joins its room as any client does, and times each stage."""
