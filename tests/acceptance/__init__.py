"""The whole product, as a caller and a client meet it."""
