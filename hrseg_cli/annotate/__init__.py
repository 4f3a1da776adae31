"""The annotation page: a local web page for clicking, on the same click session as all other commands.

records  what is stored about an image: objects and the annotator's actions
shapes   masks from strokes and outlines, and changes of whole masks
tables   the files about all images: traces, COCO, pairs
folder   files: images, masks and records
acts     what the page may ask for
answers  the model's answers to an object's actions, cached
desk     applies actions to images and objects, one at a time
export   a zip for other programs
server   HTTP on the loopback interface, and access control
page/    the web page; plain HTML, CSS and JavaScript, served unchanged
"""
