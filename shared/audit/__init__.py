"""What an auditor runs: files only, no PyTorch, no network."""
