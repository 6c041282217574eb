"""The web page of `polymuse demo`: trained models, applied to what a visitor types and uploads.

sources.py    the models that the command names, and their rows of params.yaml
models.py     a model that answers requests of the page
examples.py   inputs of the test split
app.py        the HTTP server: page, requests, limits, security headers
"""
