"""The data of each picture, apart from its drawing: plain numbers in pixels, which a template turns into SVG."""
