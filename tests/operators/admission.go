// What kube-apiserver's admission does with Jobs and CronJobs: its own plugins for mutating and
// validating policies, without the server around them.
//
// Reads policies and bindings from the files that it gets, and requests from stdin, one JSON object
// a line: {"operation", "namespace": {...}, "object": {...}, "old": {...}}. For each it writes a line
// {"object": {...}, "error": "..."}.
//
// To build it: Debian unstable's golang-k8s-apiserver-dev and golang-1.26-go, and
//
//	GO111MODULE=off GOPATH=/usr/share/gocode go build tests/operators/admission.go
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	v1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/util/compatibility"
	feature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	clientset "k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/openapi"
	"k8s.io/client-go/openapi/openapitest"
)

type request struct {
	Operation admission.Operation `json:"operation"`
	Namespace json.RawMessage     `json:"namespace"`
	Object    json.RawMessage     `json:"object"`
	Old       json.RawMessage     `json:"old"`
}

type answer struct {
	Object runtime.Object `json:"object,omitempty"`
	Error  string         `json:"error,omitempty"`
}

// The fake clientset knows no schemas.
type client struct{ kubernetes.Interface }
type schemas struct{ discovery.DiscoveryInterface }

func (c client) Discovery() discovery.DiscoveryInterface { return schemas{c.Interface.Discovery()} }
func (schemas) OpenAPIV3() openapi.Client                { return openapitest.NewEmbeddedFileClient() }

type everybody struct{}

func (everybody) Authorize(context.Context, authorizer.Attributes) (authorizer.Decision, string, error) {
	return authorizer.DecisionAllow, "", nil
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func decode(text []byte) runtime.Object {
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode(text, nil, nil)
	return must(object, err)
}

func policies(files []string) (found []runtime.Object) {
	for _, file := range files {
		documents := yaml.NewYAMLReader(bufio.NewReader(must(os.Open(file))))
		for {
			text, err := documents.Read()
			if err != nil {
				break
			}
			object := decode(text)
			defaults(object)
			found = append(found, object)
		}
	}
	return found
}

// What the server fills in.
func defaults(object runtime.Object) {
	var resources *v1.MatchResources
	switch one := object.(type) {
	case *v1.MutatingAdmissionPolicy:
		resources = one.Spec.MatchConstraints
	case *v1.MutatingAdmissionPolicyBinding:
		resources = one.Spec.MatchResources
	case *v1.ValidatingAdmissionPolicy:
		resources = one.Spec.MatchConstraints
	case *v1.ValidatingAdmissionPolicyBinding:
		resources = one.Spec.MatchResources
	}
	if resources == nil {
		return
	}
	if resources.NamespaceSelector == nil {
		resources.NamespaceSelector = &metav1.LabelSelector{}
	}
	if resources.ObjectSelector == nil {
		resources.ObjectSelector = &metav1.LabelSelector{}
	}
}

func main() {
	os.Setenv("KUBE_FEATURE_WatchListClient", "false") // the fake clientset does not stream lists
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	kube := client{clientset.NewClientset(policies(os.Args[1:])...)}
	factory := informers.NewSharedInformerFactory(kube, 0)
	mutate, validate := must(mutating.NewPlugin(nil)), must(validating.NewPlugin(nil))
	mapper := meta.NewDefaultRESTMapper(nil)
	for _, plugin := range []admission.Interface{mutate, validate} {
		initializer.New(kube, fake.NewSimpleDynamicClient(scheme.Scheme), factory, everybody{},
			feature.DefaultFeatureGate, compatibility.DefaultBuildEffectiveVersion(), ctx.Done(),
			mapper).Initialize(plugin)
		must(0, plugin.(admission.InitializationValidator).ValidateInitialization())
	}
	mutate.SetEnabled(true)
	factory.Start(ctx.Done())
	for !mutate.WaitForReady() || !validate.WaitForReady() {
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(2 * time.Second) // the policies are compiled, and the schemas read
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var one request
		if err := json.Unmarshal(lines.Bytes(), &one); err != nil {
			log.Fatal(err)
		}
		namespace := decode(one.Namespace)
		kube.CoreV1().Namespaces().Create(ctx, namespace.(*corev1.Namespace), metav1.CreateOptions{})
		fmt.Println(string(must(json.Marshal(admit(ctx, one, mutate, validate)))))
	}
}

func admit(ctx context.Context, one request, mutate *mutating.Plugin, validate *validating.Plugin) answer {
	object := decode(one.Object)
	var old runtime.Object
	if len(one.Old) > 0 {
		old = decode(one.Old)
	}
	kind := object.GetObjectKind().GroupVersionKind()
	accessor := must(meta.Accessor(object))
	resource, _ := meta.UnsafeGuessKindToResource(kind)
	attributes := admission.NewAttributesRecord(object, old, kind, accessor.GetNamespace(),
		accessor.GetName(), resource, "", one.Operation, &metav1.CreateOptions{}, false, nil)
	interfaces := admission.NewObjectInterfacesFromScheme(scheme.Scheme)
	if err := mutate.Admit(ctx, attributes, interfaces); err != nil {
		return answer{Error: err.Error()}
	}
	if err := validate.Validate(ctx, attributes, interfaces); err != nil {
		return answer{Error: err.Error()}
	}
	object.GetObjectKind().SetGroupVersionKind(kind)
	return answer{Object: object}
}
