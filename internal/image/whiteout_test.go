package image

import (
	"bytes"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// whiteouts are the corner cases of layers upon layers, with the tree that is to be
// seen.
var whiteouts = map[string]struct {
	layers [][]string
	want   []string
}{
	"a file is removed":                {[][]string{{"f a", "f b"}, {"f .wh.a"}}, []string{"f b"}},
	"a directory is removed":           {[][]string{{"f d/a", "f b"}, {"f .wh.d"}}, []string{"f b"}},
	"a file in a directory":            {[][]string{{"d d,700", "f d/a", "f d/b"}, {"f d/.wh.a"}}, []string{"d d,700", "f d/b"}},
	"implied parents keep their mode":  {[][]string{{"d tmp,1777", "d tmp/x,700"}, {"f tmp/x/y/f"}}, []string{"d tmp,1777", "d tmp/x,700", "d tmp/x/y", "f tmp/x/y/f"}},
	"what is not there is hidden":      {[][]string{{"d d", "f d/a"}, {"f d/.wh.none", "f .wh.nothing", "f e/.wh.x"}}, []string{"d d", "f d/a"}},
	"an opaque directory":              {[][]string{{"f d/a", "f d/b"}, {"f d/.wh..wh..opq", "f d/c"}}, []string{"d d", "f d/c"}},
	"opaque after its contents":        {[][]string{{"f d/a"}, {"d d,700", "f d/c", "f d/.wh..wh..opq"}}, []string{"d d,700", "f d/c"}},
	"an opaque directory alone":        {[][]string{{"d d,711", "f d/a"}, {"f d/.wh..wh..opq"}}, []string{"d d,711"}},
	"opaque where nothing is":          {[][]string{{"f a"}, {"d d", "f d/.wh..wh..opq", "f d/b"}}, []string{"f a", "d d", "f d/b"}},
	"an opaque root":                   {[][]string{{"f a", "f d/b", "f e/b"}, {"f .wh..wh..opq", "f d/c"}}, []string{"d d", "f d/c"}},
	"whiteout and file":                {[][]string{{"f a=1"}, {"f .wh.a", "f a=2"}}, []string{"f a=2"}},
	"file and whiteout":                {[][]string{{"f a=1"}, {"f a=2", "f .wh.a"}}, []string{"f a=2"}},
	"whiteout and directory":           {[][]string{{"f d/a"}, {"f .wh.d", "d d,700", "f d/b"}}, []string{"d d,700", "f d/b"}},
	"directory and whiteout":           {[][]string{{"f d/a"}, {"f d/b", "f .wh.d"}}, []string{"d d", "f d/b"}},
	"a file becomes a directory":       {[][]string{{"f x=1"}, {"d x", "f x/y"}}, []string{"d x", "f x/y"}},
	"a directory becomes a file":       {[][]string{{"f x/y"}, {"f x=1"}}, []string{"f x=1"}},
	"a directory comes back":           {[][]string{{"f d/a"}, {"f .wh.d"}, {"f d/b"}}, []string{"d d", "f d/b"}},
	"a file between directories":       {[][]string{{"f d/a"}, {"f d=1"}, {"d d", "f d/b"}}, []string{"d d", "f d/b"}},
	"removed, made, removed":           {[][]string{{"f a=1"}, {"f .wh.a"}, {"f a=2"}, {"f .wh.a"}, {"f b"}}, []string{"f b"}},
	"whiteouts in whiteouts":           {[][]string{{"f d/e/a", "f d/e/b"}, {"f d/e/.wh.a"}, {"f d/.wh.e", "f d/e/c"}}, []string{"d d", "d d/e", "f d/e/c"}},
	"a hard link in a layer":           {[][]string{{"f a=1", "h b -> a"}}, []string{"f a=1", "h b -> a"}},
	"a hard link across layers":        {[][]string{{"f a=1,600"}, {"h d/b -> a"}}, []string{"f a=1,600", "d d", "f d/b=1,600"}},
	"two hard links across layers":     {[][]string{{"f a=1"}, {"h b -> a", "h c -> b", "h d -> a"}}, []string{"f a=1", "f b=1", "h c -> b", "h d -> b"}},
	"a hard link across three layers":  {[][]string{{"f a=1"}, {"h b -> a"}, {"h c -> b", "f .wh.a"}}, []string{"f b=1", "f c=1"}},
	"a hard link, its target hidden":   {[][]string{{"f a=1"}, {"h b -> a", "f .wh.a"}}, []string{"f b=1"}},
	"a hard link to a link below":      {[][]string{{"s l -> nowhere"}, {"h m -> l"}}, []string{"s l -> nowhere", "s m -> nowhere"}},
	"through a link below":             {[][]string{{"d usr/lib,711", "s lib -> usr/lib"}, {"f lib/x=1"}}, []string{"s lib -> usr/lib", "d usr", "d usr/lib,711", "f usr/lib/x=1"}},
	"through an absolute link":         {[][]string{{"d run,711", "d var", "s var/run -> /run"}, {"f var/run/x"}}, []string{"d run,711", "f run/x", "d var", "s var/run -> /run"}},
	"through a link upwards":           {[][]string{{"d a", "s a/up -> ../../../b"}, {"f a/up/x"}}, []string{"d a", "s a/up -> ../../../b", "d b", "f b/x"}},
	"a whiteout through a link":        {[][]string{{"f usr/x", "s u -> usr"}, {"f u/.wh.x"}}, []string{"s u -> usr", "d usr"}},
	"a file twice":                     {[][]string{{"f a=1", "f b", "f a=22"}}, []string{"f a=22", "f b"}},
	"a file three times":               {[][]string{{"f a=1", "f a=22", "s a -> b"}}, []string{"s a -> b"}},
	"a directory replaced":             {[][]string{{"d d", "f d/a", "d d,700", "f d=1"}}, []string{"f d=1"}},
	"a file replaced by a directory":   {[][]string{{"f d=1", "d d", "f d/a"}}, []string{"d d", "f d/a"}},
	"a directory twice":                {[][]string{{"d d,700", "f d/a", "d d,711"}}, []string{"d d,711", "f d/a"}},
	"aufs leftovers":                   {[][]string{{"f a", "f .wh..wh.aufs", "f .wh..wh.plnk/1.2", "d .wh..wh.orph"}}, []string{"f a"}},
	"an empty layer":                   {[][]string{{"f a"}, {}, {"f b"}}, []string{"f a", "f b"}},
	"the root's mode":                  {[][]string{{"d .,711", "f a"}, {"f b"}}, []string{"f a", "f b"}},
	"a directory and its name removed": {[][]string{{"f d/a", "f d/b"}, {"f d/.wh.a", "f .wh.d"}}, nil},
	"a link is removed, not followed":  {[][]string{{"f t/x", "s l -> t"}, {"f .wh.l"}}, []string{"d t", "f t/x"}},
	"the target of a link is removed":  {[][]string{{"f t/x", "s l -> t"}, {"f .wh.t"}}, []string{"s l -> t"}},
	"a link becomes a directory":       {[][]string{{"f t/x", "s l -> t"}, {"d l,700", "f l/y"}}, []string{"d l,700", "f l/y", "d t", "f t/x"}},
	"a directory becomes a link":       {[][]string{{"f d/a", "f e/b"}, {"s d -> e"}}, []string{"s d -> e", "d e", "f e/b"}},
	"through a link of the same layer": {[][]string{{"f d/a", "f e/b"}, {"s d -> e", "f d/x"}}, []string{"s d -> e", "d e", "f e/b", "f e/x"}},
	"one name of a file of two":        {[][]string{{"f a=1", "h b -> a"}, {"f .wh.a"}}, []string{"f b=1"}},
	"a name of a file of two anew":     {[][]string{{"f a=1", "h b -> a"}, {"f a=2"}}, []string{"f a=2", "f b=1"}},
	"a whiteout in an opaque directory": {[][]string{{"f d/e/a", "f d/b"}, {"f d/.wh..wh..opq", "d d/e", "f d/e/.wh.a", "f d/e/c"}},
		[]string{"d d", "d d/e", "f d/e/c"}},
	"an opaque directory twice":        {[][]string{{"f d/a"}, {"f d/.wh..wh..opq", "f d/b", "f d/.wh..wh..opq"}}, []string{"d d", "f d/b"}},
	"opaque in opaque":                 {[][]string{{"f d/e/a", "f d/b"}, {"f d/.wh..wh..opq", "f d/e/.wh..wh..opq", "f d/e/c"}}, []string{"d d", "d d/e", "f d/e/c"}},
	"opaque over a file":               {[][]string{{"f d=1"}, {"d d", "f d/.wh..wh..opq", "f d/a"}}, []string{"d d", "f d/a"}},
	"opaque through a link":            {[][]string{{"f r/a", "s d -> r"}, {"f d/.wh..wh..opq", "f d/b"}}, []string{"s d -> r", "d r", "f r/b"}},
	"an opaque directory between":      {[][]string{{"f d/a"}, {"f d/.wh..wh..opq", "f d/b"}, {"f d/c"}}, []string{"d d", "f d/b", "f d/c"}},
	"opaque twice, upwards":            {[][]string{{"f d/a"}, {"f d/.wh..wh..opq", "f d/b"}, {"f d/.wh..wh..opq", "f d/c"}}, []string{"d d", "f d/c"}},
	"a whiteout that is a directory":   {[][]string{{"f a", "f b"}, {"d .wh.a"}}, []string{"f b"}},
	"a whiteout twice":                 {[][]string{{"f a", "f b"}, {"f .wh.a", "f .wh.a"}}, []string{"f b"}},
	"names that begin like a whiteout": {[][]string{{"f .whatever", "f .wh"}, {"f .whither"}}, []string{"f .wh", "f .whatever", "f .whither"}},
	"a whiteout of a name with a dot":  {[][]string{{"f .a", "f b"}, {"f .wh..a"}}, []string{"f b"}},
	"a directory's mode alone":         {[][]string{{"d d,700", "f d/a"}, {"d d,711"}}, []string{"d d,711", "f d/a"}},
	"two layers below":                 {[][]string{{"f d/e/a", "f d/e/b"}, {"f x"}, {"f d/e/.wh.a"}}, []string{"d d", "d d/e", "f d/e/b", "f x"}},
	"a directory moves":                {[][]string{{"f old/a=1", "f old/s/b=2"}, {"f .wh.old", "f new/a=1", "f new/s/b=2"}}, []string{"d new", "f new/a=1", "d new/s", "f new/s/b=2"}},
	"a directory goes and comes twice": {[][]string{{"f d/a"}, {"f .wh.d"}, {"f d/b"}, {"f .wh.d"}, {"f d/c"}}, []string{"d d", "f d/c"}},
	"a file, a directory, a file":      {[][]string{{"f x=1"}, {"d x", "f x/y"}, {"f x=3"}}, []string{"f x=3"}},
	"a whiteout below a file":          {[][]string{{"f x=1"}, {"f x/.wh.y"}}, []string{"f x=1"}},
}

// otherwise are cases of which umoci 0.4.7 makes something else, with the reason why we
// do not.
var otherwise = map[string]string{
	"aufs leftovers": "it keeps what is below a name of aufs",
}

// TestUmociAgrees has umoci unpack each case, so that what is expected is not ours alone.
func TestUmociAgrees(t *testing.T) {
	for name, c := range whiteouts {
		t.Run(name, func(t *testing.T) {
			img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers"}})
			if err != nil {
				t.Fatal(err)
			}
			img = mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), types.OCIConfigJSON)
			for _, entries := range c.layers {
				data := layerArchive(t, entries...)
				layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }, tarball.WithMediaType(types.OCILayer))
				if err == nil {
					img, err = mutate.AppendLayers(img, layer)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			got, said := umociUnpacks(t, img)
			same := said == "" && slices.Equal(unlinked(got), unlinked(c.want))
			if reason := otherwise[name]; same != (reason == "") {
				t.Errorf("umoci makes %q of it (%s), want %q; known: %q", got, said, c.want, reason)
			}
		})
	}
}

// umociUnpacks lists what umoci makes of an image, or tells why it does not.
func umociUnpacks(t *testing.T, img v1.Image) (files []string, said string) {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(filepath.Join(dir, "layout"), empty.Index)
	if err == nil {
		err = p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "it"}))
	}
	if err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(dir, "bundle")
	if out, err := exec.Command("umoci", "unpack", "--image", filepath.Join(dir, "layout")+":it", bundle).CombinedOutput(); err != nil {
		return nil, string(out)
	}
	return listed(t, filepath.Join(bundle, "rootfs")), ""
}
