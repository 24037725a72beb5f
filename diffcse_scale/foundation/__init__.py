"""The base of all other packages: errors, durable files, ownership, random numbers, the machine."""
