"""The whole path from model to running session in one readable function: read this first."""
