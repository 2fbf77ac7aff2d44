"""Pages about runs, to read and to cite: one self-contained HTML, or Markdown."""
