"""What every other part stands on: errors, durable files, ownership, random numbers, the machine."""
