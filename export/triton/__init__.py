"""Generate the config.pbtxt files that Triton reads."""
