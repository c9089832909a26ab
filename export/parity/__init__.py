"""Check that exported files and engines compute what their PyTorch sources compute."""
