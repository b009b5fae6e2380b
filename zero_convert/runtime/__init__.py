"""State of the process, and how it is put back as it was."""
