"""The annotation page: a local web page for clicking, on the same click session as all other commands.

folder   files: images, masks and the annotator's actions
desk     applies actions to images and objects, one at a time; model and caches
server   HTTP on the loopback interface, and access control
page/    the web page; plain HTML, CSS and JavaScript, served unchanged
"""
