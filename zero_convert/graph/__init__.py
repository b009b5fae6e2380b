"""What tracing gives, and tools on it: queries, edits, copies, ties."""
