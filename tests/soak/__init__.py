"""Minutes of the whole product with calls, kills and agents that misbehave: does anything stay behind?"""
