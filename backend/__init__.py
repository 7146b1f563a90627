"""Greenroom: a voice agent in a LiveKit room before the caller gets there."""
