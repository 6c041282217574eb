"""What `polymuse init` finds out about the user's data; nothing here writes a file.

detect.py   which kind and format a folder has, by reading it with every format
table.py    what the columns of a table hold
images.py   whether images are photographs or drawings
plan.py     the parameter files that follow
"""
