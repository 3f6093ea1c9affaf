"""What both training loops share: losses, schedules, the optimizer, ranks, run folders and their logs."""
