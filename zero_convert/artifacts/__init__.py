"""What written files are: receipts, locks, comparing, verifying, differences. No torch."""
