"""How soon does a search strategy find the best map, and what does racing save?"""
