"""The rules of holds. Pure: no clock, no logging, no system call; time and identity come in as values."""
