"""The processes that talk: the launcher and the agents that it forks."""
