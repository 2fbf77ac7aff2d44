"""Files and words of others: bounded where they are read, escaped where they are shown.

- `bounded_json`, `bounded_npz`, `bounded_yaml`, `json_fields`: no more depth, size or fields than make sense;
  `expansion`: how far a file may unpack; `git_lfs`: pointers instead of files
- `json_text`: JSON without NaN; `printable`: text and tables in a terminal or log; `markdown`: in Markdown
- `file_names`: clutter, bytes that are no text, Unicode forms; `versions`: of installed packages
"""
