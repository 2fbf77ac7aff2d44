"""A web page on this machine to try a model: `awtpn serve`.

- `server`: the routes, one prediction at a time, from the start to Ctrl-C
- `guards`: which requests are refused, and the headers of all responses
- `uploads`: a request's body into a private file, up to a limit
- `clips`: whether a file is a recording that is taken, and error messages without paths
- `answers`: what the page is told: of the model, and from a clip to what is drawn

`page.html`, `page.css`, `page.js` and `draw.js` are the page. It loads nothing from elsewhere.

Why not Gradio (6.31 was compared): it adds 342 MB of packages, sends usage data unless an environment
variable forbids it, serves files of a temporary folder, and has no component that draws weights over a
waveform and frames. This page needs aiohttp alone (9 MB), which reading from object storage brings anyway.
"""
