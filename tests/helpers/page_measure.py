"""A script that a page gets before its end, to measure it in a browser. Main entry: `MEASURE`."""

# Records the width of the page and the number of loaded resources.
MEASURE = """<script>
root.dataset.overflow = String(root.scrollWidth - innerWidth); root.dataset.width = String(innerWidth);
root.dataset.loaded = String(performance.getEntriesByType("resource").length);
root.dataset.dark = String(matchMedia("(prefers-color-scheme: dark)").matches);
if (parent !== window) parent.postMessage({ ...root.dataset }, "*");
</script></body>"""
