"""A small real server of the Hugging Face Hub's download protocol over folders: for tests and the demo.

`<root>/<name>` is the repository `<organisation>/<name>` with one revision, `main`. A folder with subfolders
`<root>/<name>/@<revision>` has those revisions, of which `main` is the default one.
"""
