"""SelfOcc: images to a signed distance field that is taught by rendering it into the images beside."""
