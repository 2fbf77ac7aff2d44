"""Files and text that others wrote: read with limits, and escaped where they are shown.

- `bounded_json`, `bounded_npz`, `bounded_yaml`, `json_fields`: limits on depth, size and fields; `expansion`:
  reads `.npz` and `.npy` of users, with a limit on how much they unpack to; `git_lfs`: refuses pointer files
- `json_text`: writes JSON without NaN; `printable`: text and tables for a terminal or log; `markdown`: text
  and tables in Markdown
- `file_names`: files of operating systems, names that are not UTF-8, Unicode forms; `versions`: of installed
  packages
"""
