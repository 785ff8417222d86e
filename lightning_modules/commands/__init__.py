"""The commands of `convsuite`, one module each; `lightning_modules.cli` imports the one that runs."""
