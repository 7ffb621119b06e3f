"""The commands of `python -m recipes`: each file without a leading underscore is one."""
