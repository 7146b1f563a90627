"""Sessions, the pool, tokens and rooms: the programs api, worker and beat."""
