"""A local web page that names what is played.

answer → words     a file or the synthesizer → what was heard → what the page says of it
picture            the window that the network saw
page               the page itself, in Gradio, the one module that needs it

    python -m sousa_jax.demo --help
"""
